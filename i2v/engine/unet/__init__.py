"""The I2VGen-XL UNet: our own, with the published names of its weights."""
