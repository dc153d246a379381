"""A page on which to try a model: one file, which is also the app of a Hugging Face Space (extra `demo-app`)."""
