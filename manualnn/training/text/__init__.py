"""What is printed and read as text: names, messages, YAML."""
