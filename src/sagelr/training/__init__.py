"""What `sagelr.train` is made of: optimizers of arms, batches, the Trainer, checkpoints."""
