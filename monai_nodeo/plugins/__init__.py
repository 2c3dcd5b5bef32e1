# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Registration within other programs: napari, as ``napari.yaml`` tells it, and monai-physio."""
