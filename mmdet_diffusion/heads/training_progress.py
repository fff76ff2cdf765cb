"""How far the training of this process has come."""

from mmengine.logging import MessageHub


def training_progress() -> float | None:
    """Share of the iterations that are done, from 0 to 1; None where no runner of mmengine's is training."""
    hub = MessageHub.get_current_instance()
    if hub.get_info('loop_stage') != 'train':
        return None
    return hub.get_info('iter') / hub.get_info('max_iters')
