"""How the demo model is made, in one command: `python -m i2v.demo.train --work DIR --out FOLDER`.

Needs the `train` extra (scikit-image, for pictures of clean licence and for registration). Nothing else imports it.
"""
