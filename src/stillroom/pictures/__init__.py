"""What goes in: sources of pictures, the shards they are packed into, their reader."""
