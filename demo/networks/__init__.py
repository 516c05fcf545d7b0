"""Training of the small networks that surround the mini transformer: text encoder and autoencoder."""
