# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Losses of a registration: similarity of two images, regularity of a displacement or of a velocity, and their sum."""

from __future__ import annotations

from monai_nodeo.losses.channels import ChannelLoss
from monai_nodeo.losses.correlation_ratio import LocalCorrelationRatioLoss, MappedIntensityLoss
from monai_nodeo.losses.labels import label_loss, label_shares
from monai_nodeo.losses.landmarks import landmark_errors, landmark_loss
from monai_nodeo.losses.local_ncc import LocalNCCLoss
from monai_nodeo.losses.mind import MINDSSCLoss, mind_ssc
from monai_nodeo.losses.objective import RegistrationLoss
from monai_nodeo.losses.regularity import (
    DDFLoss,
    FoldingLoss,
    LogJacobianBound,
    LogJacobianLoss,
    SmoothnessLoss,
    VelocityMagnitudeLoss,
)
from monai_nodeo.losses.similarity import ImageLoss, IntensityLoss, VoxelwiseLoss, voxel_counts
from monai_nodeo.losses.tempered import TemperedLoss

__all__ = [
    "ChannelLoss",
    "DDFLoss",
    "FoldingLoss",
    "ImageLoss",
    "IntensityLoss",
    "LocalCorrelationRatioLoss",
    "LocalNCCLoss",
    "LogJacobianBound",
    "LogJacobianLoss",
    "MINDSSCLoss",
    "MappedIntensityLoss",
    "RegistrationLoss",
    "SmoothnessLoss",
    "TemperedLoss",
    "VelocityMagnitudeLoss",
    "VoxelwiseLoss",
    "label_loss",
    "label_shares",
    "landmark_errors",
    "landmark_loss",
    "mind_ssc",
    "voxel_counts",
]
