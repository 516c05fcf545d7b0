"""Networks: the SAT transformer with its mixins, the video autoencoder, the text encoder. They do not see one another."""
