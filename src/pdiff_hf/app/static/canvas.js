// What is drawn is sent when the pen is lifted.
const canvas = element.querySelector('canvas'), context = canvas.getContext('2d');
const clear = () => { context.fillStyle = '#000'; context.fillRect(0, 0, canvas.width, canvas.height); };
let last = null;
const place = (event) => {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.x) * canvas.width) / box.width, ((event.clientY - box.y) * canvas.height) / box.height];
};
const line = (from, to) => {
  Object.assign(context, { strokeStyle: '#fff', lineWidth: 26, lineCap: 'round', lineJoin: 'round' });
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
};
clear();
canvas.addEventListener('pointerdown', (event) => {
  canvas.setPointerCapture(event.pointerId);
  last = place(event);
  line(last, last);
});
canvas.addEventListener('pointermove', (event) => {
  if (!last) return;
  const here = place(event);
  line(last, here);
  last = here;
});
const lift = () => {
  if (!last) return;
  last = null;
  trigger('submit', { image: canvas.toDataURL('image/png') });
};
canvas.addEventListener('pointerup', lift);
canvas.addEventListener('pointercancel', lift);
element.querySelector('button').addEventListener('click', () => { clear(); trigger('clear'); });
