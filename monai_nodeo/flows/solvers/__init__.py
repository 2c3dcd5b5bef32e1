# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""How a velocity is integrated: the protocol and a file for each solver.

The names that settings give them: `registration.named_parts`. They are imported from `monai_nodeo.flows`.
"""
