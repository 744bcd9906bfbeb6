"""A page to try a model on in the browser: chat about images, search a folder, generate images."""
