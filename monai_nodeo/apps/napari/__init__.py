# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Two layers of napari registered in a dock widget, as ``napari.yaml`` tells napari."""
