"""Helpers that PyTorch keeps under torch.utils."""
# written by the optim/data helper; do not overwrite
