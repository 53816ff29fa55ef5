"""What distils, in kdbench's own loop and in anybody's: the loss of a step, and the `Distiller`."""
