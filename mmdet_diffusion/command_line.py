"""What the programs that look at pictures make of their arguments."""

from argparse import Namespace

import torch

from .config_zoo import refuse_missing_config, with_config_path
from .input_checks import refuse_half_precision, refuse_missing_device, refuse_missing_model
from .launch import parse_cfg_options, read_config
from .prediction import Predictor


def predictor_of(args: Namespace, dial: dict) -> Predictor:
    """The predictor of a command line, after what can be refused before it is built.

    Args:
        args (Namespace): ``config`` (path or name), ``checkpoint``, ``cfg_options`` (KEY=VALUE), ``device`` (None: a
            GPU where there is one) and ``score_thr``.
        dial (dict): see :class:`Predictor`.

    Raises:
        SystemExit: names what is missing, or what is wrong with a setting.
    """
    device = args.device or ('cuda:0' if torch.cuda.is_available() else 'cpu')
    refuse_missing_device(device)
    path, = with_config_path([args.config])
    refuse_missing_config(path)
    config = read_config(path, parse_cfg_options(args.cfg_options))
    refuse_missing_model(config)
    refuse_half_precision(config, device)
    try:
        return Predictor(config, args.checkpoint, device=device, score_thr=args.score_thr, dial=dial)
    except ValueError as error:  # the model says what is wrong with its settings, such as too many steps
        raise SystemExit(str(error)) from error
