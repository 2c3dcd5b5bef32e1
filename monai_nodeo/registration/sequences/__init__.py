# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The registration of a series of images: the call, its result, a step of a MONAI ``Compose``."""
