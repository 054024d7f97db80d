// The theme is one of the user's preferences; a copy in this browser keeps the first paint from flashing.
(() => {
  const known = ['light', 'dark'];
  let kept = null;
  try {
    kept = localStorage.getItem('theme');
  } catch {
    // Storage is switched off: the system's choice counts.
  }
  if (known.includes(kept)) document.documentElement.dataset.theme = kept;
})();
