"""Optimizers, learning-rate schedules and weight averaging, with the names of torch.optim."""
# written by the optim/data helper; do not overwrite
