"""finetune beside transformers' Trainer: same checkpoint, rows, seed, steps, learning rate; one process per run."""
