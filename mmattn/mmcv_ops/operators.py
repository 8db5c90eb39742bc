"""The functions of `mmcv._ext` that torch and torchvision have, called as mmcv calls them.

A function has the name and the arguments of mmcv's, and like it writes into the buffers that it is
given: gradients are added to what lies in them. Half precision is computed in float32 and rounded
at the end, on CPU and CUDA.
"""

from typing import Any, NoReturn

import torch
import torchvision

from .attention import ms_deform_attn_backward, ms_deform_attn_forward
from .convolution import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    masked_col2im_forward,
    masked_im2col_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from .finder import recipe
from .focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from .regions import roi_align_backward, roi_align_forward, roi_pool_backward, roi_pool_forward
from .suppression import nms, nms_match, softnms

__all__ = [
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'nms_match',
    'roi_align_backward',
    'roi_align_forward',
    'roi_pool_backward',
    'roi_pool_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
    'softnms',
]


class Missing:
    """Stands for an operator without a counterpart: exists by name, and raises when called."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __repr__(self) -> str:
        return f'<no counterpart of mmcv._ext.{self.__name__}>'

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"mmcv's operator '{self.__name__}' has no counterpart in torch or torchvision, which "
            f"stand in for mmcv's compiled operators here. To get the compiled ones: {recipe()}"
        )


def missing(name: str) -> Missing:
    """`__getattr__` of the module: mmcv asserts of every operator that it exists."""
    if name.startswith('_'):
        raise AttributeError(f"module 'mmcv._ext' has no attribute '{name}'")
    return Missing(name)


def get_compiler_version() -> str:
    return f'none, operators of torchvision {torchvision.__version__}'


def get_compiling_cuda_version() -> str:
    return torch.version.cuda or 'not available'
