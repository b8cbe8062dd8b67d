"""The names of torch.utils.data, re-exported from cermet.data."""
# written by the optim/data helper; do not overwrite
