"""A job's own optimizer, which its servers load from the signed code."""

import mxnet as mx


@mx.optimizer.register
class Clipped(mx.optimizer.Optimizer):
    """Gradient descent that moves no weight further than `limit` in one step."""

    def __init__(self, limit=1.0, **kwargs):
        super().__init__(**kwargs)
        self.limit = limit

    def create_state(self, index, weight):
        return None

    def update(self, index, weight, grad, state):
        self._update_count(index)
        step = self._get_lr(index) * self.rescale_grad * grad
        weight[:] -= mx.nd.clip(step, -self.limit, self.limit)
