"""From prompts to scores: checkpoints, tokens, batching, the forward pass, the head. Knows nothing of providers."""
