"""Assemblies of models, diffusion and faces into something that makes videos."""
