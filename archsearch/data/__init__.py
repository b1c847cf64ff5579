"""Image data: sources in every form, preparing them once, and loading what candidates are trained and scored on."""
