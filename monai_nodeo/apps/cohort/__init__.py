# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Many pairs: a ledger of what is finished, and engines that run the rest.

A pair is registered by the bundle's config, as one pair is, into a folder of its own. What is finished is said by the
files alone, so that any process may die at any time and the next run goes on where it was.
"""
