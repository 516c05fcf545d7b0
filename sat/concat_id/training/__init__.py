"""Fine-tuning: our own loop over DeepSpeed's engine, resumable to the bit."""
