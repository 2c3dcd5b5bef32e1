# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Images of a BIDS dataset registered to an atlas, and the results as a BIDS derivative."""
