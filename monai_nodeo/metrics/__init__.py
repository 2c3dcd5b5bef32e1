# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Numbers: of a field, of labels and landmarks, of a transform, of a pair."""
