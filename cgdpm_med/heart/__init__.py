"""The heart as one task: function, cardiac checks, what a short-axis stack must be."""
