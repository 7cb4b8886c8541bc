"""Figures, as Plotly takes them, in colours that page.css names."""
