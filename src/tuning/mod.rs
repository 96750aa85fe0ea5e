//! Fine-tuning: recipes, LoRA, batches, loss and the trainer.
