"""Models of configs that have the key `plug`, in our tools and in other people's runners."""

import copy
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS, MODELS
from torch import nn

from mmattn.registry import register

from .decay import spare_identity_scales
from .fresh import FreshGatesHook
from .plug import plug_entries
from .plug.modules import placed


def build_model(cfg: Any) -> nn.Module:
    """The model of a config, plugged as its key `plug` says.

    Args:
        cfg (Config): With `model`, and perhaps `plug`.

    Raises:
        ValueError: see `mmattn.plug`.
    """
    model = MODELS.build(cfg['model'])
    plug_entries(model, cfg.get('plug') or ())
    return model


@register(MODELS)
def PluggedModel(model: dict[str, Any], plug: list[dict[str, Any]]) -> nn.Module:  # noqa: N802
    """A model of any codebase, plugged: `model = dict(type='PluggedModel', model=..., plug=[...])`.

    It is the model itself that is built, so that all that reads a config's `model` (other runners,
    the codebases' inference and deployment) has the gates.

    Args:
        model (dict): The model's config.
        plug (list[dict]): See `mmattn.hosts.plug.entries`.

    Raises:
        ValueError: see `mmattn.plug`.
    """
    with MODELS.switch_scope_and_registry(None) as registry:
        built = registry.build(model)
    plug_entries(built, plug)
    return built


@register(HOOKS)
class PlugHook(Hook):
    """Plugs the model of a runner that does not read the key `plug`, before anything runs.

    Runners make hooks last. What they have made of the model by then (the wrapper of distributed
    training, the optimiser, schedules of its learning rate) is made once more with the gates in it;
    what comes later (averages of the weights, checkpoints, weights to start from) finds them there.

    Args:
        plug (list[dict]): See `mmattn.hosts.plug.entries`.
    """

    priority = 'HIGHEST'

    def __init__(self, plug: list[dict[str, Any]]) -> None:
        self.plug = plug

    def before_run(self, runner: Any) -> None:
        """Raises RuntimeError if the runner's optimiser is not of its config."""
        if not any(isinstance(hook, FreshGatesHook) for hook in runner.hooks):
            runner.register_hook(FreshGatesHook())  # it comes later than this one
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if [*placed(model)]:
            return  # it is asked before each of training, validation and test
        trains = isinstance(runner.optim_wrapper, (OptimWrapper, OptimWrapperDict))
        cfg = runner.cfg.get('optim_wrapper')
        if trains and not isinstance(cfg, dict):
            raise RuntimeError(
                "PlugHook makes the optimiser anew, which needs optim_wrapper in the runner's "
                'config; plug the model by mmattn.plug before the runner is made'
            )
        for place in plug_entries(model, self.plug):
            runner.logger.info(f'plugged: {", ".join(place.gates)} behind {place}')
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)
        if trains:
            runner.optim_wrapper = runner.build_optim_wrapper(copy.deepcopy(cfg))
            spare_identity_scales(model, runner.optim_wrapper)
            runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
            if runner.param_schedulers is not None:
                schedulers = copy.deepcopy(runner.cfg.get('param_scheduler'))
                runner.param_schedulers = runner.build_param_scheduler(schedulers)
