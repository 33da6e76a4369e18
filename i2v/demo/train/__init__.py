"""How the shipped demo model was made: pictures, captions, autoencoder, text encoder, motion, evaluation.

`python -m i2v.demo.train` runs every stage and resumes where it stopped. Nothing of the server is imported here, and
the server imports nothing of this package; it needs the `train` extra (scikit-image, for its free photos).
"""
