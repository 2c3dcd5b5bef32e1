# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""From a pair as it was loaded to what is optimised: its channels, thick slices, large images, a grid in the middle."""
