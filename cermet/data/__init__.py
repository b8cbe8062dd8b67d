"""Datasets, samplers and the DataLoader, with the names of torch.utils.data."""
# written by the optim/data helper; do not overwrite
