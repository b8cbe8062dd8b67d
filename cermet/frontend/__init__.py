"""What users hold and call: tensors, gradients, creation, indexing, printing, exchange with other libraries."""
