"""How far the training of this process has come."""

from mmengine.logging import MessageHub


def training_progress() -> float:
    """Share of the iterations that are done, from 0 to 1; 0 where no runner of mmengine's says so."""
    hub = MessageHub.get_current_instance()
    num_iterations = hub.get_info('max_iters', 0)
    return min(1.0, hub.get_info('iter', 0) / num_iterations) if num_iterations else 0.0
