"""What is trained: student configurations and the distiller around a student."""
