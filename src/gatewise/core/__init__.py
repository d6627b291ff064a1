"""What any module may use: checks of arguments, atomic files, and the schema of what they contain."""
