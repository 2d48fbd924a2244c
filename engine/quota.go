package engine

import (
	"errors"
	"log/slog"
	"os"

	"podstead/engine/internal/disk"
	"podstead/sys/quota"
)

// openProjects has the file system of the writable layers count them, each as a
// project of its own, if it can.
func (e *Engine) openProjects() {
	p, err := quota.Open(e.layersDir())
	if err == nil {
		e.projects, e.surveyor = p, disk.NewSurveyor(e.life, e.worker.Go, e.log, p)
		return
	}
	level := slog.LevelWarn
	if errors.Is(err, errors.ErrUnsupported) {
		level = slog.LevelDebug // as nearly everywhere
	}
	e.log.Log(e.life, level, "the file system does not count projects; writable layers are walked", "reason", err)
	e.surveyor = disk.NewSurveyor(e.life, e.worker.Go, e.log, nil)
}

// takeProject is the project of a new container's writable layer, 0 if there is
// to be none.
func (e *Engine) takeProject() uint32 {
	if e.projects == nil {
		return 0
	}
	p, err := e.projects.Take()
	if err != nil {
		e.log.Warn("no project for a container; its writable layer will be walked", "error", err)
	}
	return p
}

// makeLayer makes the directories of a writable layer. Both belong to its
// project: an overlay renames from one to the other.
func (e *Engine) makeLayer(r *containerRecord) error {
	for _, name := range []string{"upper", "work"} {
		dir := e.containerFile(r.ID, name)
		// The mode of upper is that of the container's root directory.
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if r.Project == 0 {
			continue
		}
		if err := quota.Assign(dir, r.Project); err != nil {
			return err
		}
	}
	return nil
}

// keepProject and giveProject say that a container has its project, and that the
// container and its files are gone.
func (e *Engine) keepProject(r *containerRecord) {
	if e.projects != nil && r.Project != 0 {
		e.projects.Keep(r.Project)
	}
}

func (e *Engine) giveProject(r *containerRecord) {
	if e.projects != nil && r.Project != 0 {
		e.projects.Give(r.Project)
	}
}

// layerTree is the writable layer of a container. In a user namespace nobody can
// change the project of a file.
func (e *Engine) layerTree(c *container) disk.Tree {
	rec := c.record()
	t := disk.Tree{Dir: e.containerFile(c.id, "upper"), Project: rec.Project}
	if s := e.sandboxOf(&rec); s != nil {
		of := s.record()
		t.Sealed = of.userNamespace()
	}
	return t
}
