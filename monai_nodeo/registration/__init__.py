# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The registration of a pair: levels, trainer, inferer, MONAI transforms, results."""
