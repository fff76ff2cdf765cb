"""Test files import mmcv.ops before mmdet_diffusion, which would make the stand-ins available."""

import mmcv_stand_in

mmcv_stand_in.install()
