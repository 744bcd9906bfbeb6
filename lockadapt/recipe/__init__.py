"""What the user wrote: schema, reading with places, overrides, explanations."""
