"""The SDK inside other programs. Each needs an extra, and is imported only when asked for."""
