# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Linear maps between two coarse images: how well they explain the pair, and the search for better ones.

Used by `data.start`.
"""

from __future__ import annotations

from monai_nodeo.data.pose.best_pose import Found, best_pose
from monai_nodeo.data.pose.information import Level
from monai_nodeo.data.pose.poses import Poses
from monai_nodeo.data.pose.views import Grid, View

__all__ = ["Found", "Grid", "Level", "Poses", "View", "best_pose"]
