"""The pieces that model families are put together from: linears, norms, rotary embeddings, attention, MLPs, blocks."""
