"""How the demo model is made, in one command from the checkout: `python -m tools.demo_model --work DIR --out FOLDER`.

Needs the `train` extra (scikit-image, for its photos of clean licence). Nothing else imports it.
"""
