"""The built-in example: pictures drawn here, tiny models made here, the whole way in minutes."""
