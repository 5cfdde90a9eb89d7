"""What became of commands and deliveries: read from the rows. Whatever is past its time counts as expired."""
