"""How the demo model is made, in one command: `python -m i2v.demo.train --work DIR --out FOLDER`.

Needs the `train` extra (scikit-image, for its photos of clean licence). Nothing else imports it.
"""
